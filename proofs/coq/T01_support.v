(* T01 (a)-(c). The projection onto support x values: round inside the support with the largest total gain. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section SupportTimesValues.
Variables (R : realFieldType) (m n : nat).
Local Notation pos := ('I_m * 'I_n)%type.
Local Notation mask := {set pos}.

(* V p: the values allowed at position p, 0 among them; Q p z: a nearest one to z. *)
Variables (V : pos -> R -> Prop) (Q : pos -> R -> R) (F : mask -> Prop).
Hypotheses (zero_allowed : forall p, V p 0) (Q_allowed : forall p z, V p (Q p z)).
Hypothesis Q_nearest : forall p z v, V p v -> (z - Q p z) ^+ 2 <= (z - v) ^+ 2.

Definition gain p z := z ^+ 2 - (z - Q p z) ^+ 2.
Definition feasible (T : 'M[R]_(m, n)) :=
  exists2 M, F M & forall p, V p (T p.1 p.2) /\ (p \notin M -> T p.1 p.2 = 0).

Variable Z : 'M[R]_(m, n).
Local Notation z p := (Z p.1 p.2).
Definition total_gain (M : mask) := \sum_(p in M) gain p (z p).
Definition rounded_on (M : mask) : 'M[R]_(m, n) := \matrix_(i, j) if (i, j) \in M then Q (i, j) (Z i j) else 0.

(* (a) *)
Theorem gain_ge0 p x : 0 <= gain p x.
Proof. by rewrite subr_ge0 -[in X in _ <= X](subr0 x) Q_nearest. Qed.

Theorem distance M : sqnorm (Z - rounded_on M) = sqnorm Z - total_gain M.
Proof.
have -> : total_gain M = \sum_p (if p \in M then gain p (z p) else 0) by rewrite /total_gain big_mkcond.
rewrite !sqnorm_pair -sumrB; apply: eq_bigr => -[i j] _ /=.
rewrite !mxE; case: ifP => _; last by rewrite !subr0.
by rewrite /gain opprB addrCA subrr addr0.
Qed.

Lemma distance_ge (T : 'M[R]_(m, n)) (M : mask) : (forall p, V p (T p.1 p.2) /\ (p \notin M -> T p.1 p.2 = 0)) ->
  sqnorm Z - total_gain M <= sqnorm (Z - T).
Proof.
move=> inM; rewrite -distance !sqnorm_pair; apply: ler_sum => -[i j] _ /=; rewrite !mxE.
by case: ifP => [_ | /negbT out]; [apply/Q_nearest; case: (inM (i, j)) | case: (inM (i, j)) => _ /(_ out) /= ->].
Qed.

(* (b) A mask of the largest total gain gives a nearest point. *)
Theorem best_mask_nearest M : F M -> (forall M', F M' -> total_gain M' <= total_gain M) ->
  nearest feasible Z (rounded_on M).
Proof.
move=> FM best; split=> [|T [M' FM' inM']].
  by exists M => // -[i j]; rewrite mxE /=; case: ifP => // ->.
rewrite distance; apply: le_trans (distance_ge inM'); by rewrite ler_add2l ler_opp2 best.
Qed.

(* (c) Positions lie in candidates (single weights, blocks), candidates in groups (rows, blocks of a row); a mask keeps
   whole candidates, at most k g of group g. *)
Variables (cand group : finType) (of_pos : pos -> cand) (of_cand : cand -> group) (k : group -> nat).
Definition mask_of (A : {set cand}) : mask := [set p | of_pos p \in A].
Definition in_group g := [set c | of_cand c == g].
Definition keeps_k (A : {set cand}) := forall g, (#|A :&: in_group g| <= k g)%N.

Definition cand_gain c := \sum_(p | of_pos p == c) gain p (z p).

Lemma cand_gain_ge0 c : 0 <= cand_gain c.
Proof. by apply: sumr_ge0 => p _; apply: gain_ge0. Qed.

Lemma total_gainE A : total_gain (mask_of A) = \sum_g \sum_(c in A :&: in_group g) cand_gain c.
Proof.
rewrite (eq_bigr (fun g => \sum_(c in A | of_cand c == g) cand_gain c)); last first.
  by move=> g _; apply: eq_bigl => c; rewrite !inE.
rewrite -(partition_big of_cand xpredT) //= /total_gain (partition_big of_pos (mem A)) => [|p] /=; last by rewrite inE.
by apply: eq_bigr => c Ac; apply: eq_bigl => p; rewrite inE; case: eqP => [->|]; rewrite ?Ac ?andbF.
Qed.

(* A keeps the k largest: as many as allowed, and none left out is larger than one kept. *)
Definition keeps_largest (A : {set cand}) := forall g,
  #|A :&: in_group g| = minn (k g) #|in_group g| /\
  {in A :&: in_group g & in_group g :\: A, forall c c', cand_gain c' <= cand_gain c}.

(* Exchange argument for one group. *)
Lemma largest_sum (h : cand -> R) (A B G : {set cand}) : (forall c, 0 <= h c) -> A \subset G -> B \subset G ->
  (#|B| <= #|A|)%N -> {in A & G :\: A, forall c c', h c' <= h c} -> \sum_(c in B) h c <= \sum_(c in A) h c.
Proof.
move=> h0 AG BG cardBA top.
rewrite (big_setID A) /= [X in _ <= X](big_setID B) /= setIC ler_add2l.
have cardD : (#|B :\: A| <= #|A :\: B|)%N by rewrite -(leq_add2l #|A :&: B|) cardsID setIC cardsID.
have [-> | [c0 c0B]] := set_0Vmem (B :\: A); first by rewrite big_set0 sumr_ge0.
have BAGA : {subset B :\: A <= G :\: A} by move=> c; rewrite !inE => /andP[-> /(subsetP BG)].
(* t separates the two: the least gain kept *)
have [c1 c1A] : exists c1, c1 \in A :\: B.
  by apply/set0Pn; rewrite -card_gt0 (leq_trans _ cardD) // card_gt0; apply/set0Pn; exists c0.
pose t := h [arg min_(c < c1 in A :\: B) h c]%O.
have t_le c : c \in A :\: B -> t <= h c by move=> cA; rewrite /t; case: arg_minP => // i _; apply.
have le_t c : c \in B :\: A -> h c <= t.
  move=> cB; rewrite /t; case: arg_minP => // i; rewrite inE => /andP[_ iA] _; apply: top => //; exact: BAGA.
apply: (@le_trans _ _ (\sum_(c in A :\: B) t)); last exact: ler_sum.
apply: (@le_trans _ _ (\sum_(c in B :\: A) t)); first exact: ler_sum.
by rewrite !sumr_const ler_wpmuln2l // /t.
Qed.

Theorem keeping_largest A B : keeps_largest A -> keeps_k B -> total_gain (mask_of B) <= total_gain (mask_of A).
Proof.
move=> top leB; rewrite !total_gainE; apply: ler_sum => g _; have [cardA topA] := top g.
apply: (@largest_sum _ _ _ (in_group g)); rewrite ?subsetIr //; first exact: cand_gain_ge0.
  by rewrite cardA leq_min leB subset_leq_card ?subsetIr.
move=> c c' cA; rewrite !inE => /andP[out ing]; apply: topA => //.
by rewrite !inE ing andbT; move: out; rewrite ing andbT.
Qed.

End SupportTimesValues.

(* Sorting by gain and taking the first k of every group does it, whatever the order among equal gains. *)
Section TopK.
Variables (R : realFieldType) (T : finType) (h : T -> R) (k : nat).
Definition larger : rel T := fun c c' => h c' <= h c.
Definition topk (G : {set T}) : {set T} := [set c in take k (sort larger (enum G))].

Lemma topkP G :
  [/\ topk G \subset G, #|topk G| = minn k #|G| & {in topk G & G :\: topk G, forall c c', h c' <= h c}].
Proof.
set s := sort larger (enum G).
have mem_s c : (c \in s) = (c \in G) by rewrite mem_sort mem_enum.
have uniq_s : uniq s by rewrite sort_uniq enum_uniq.
split.
- by apply/subsetP => c; rewrite inE -mem_s; apply: mem_take.
- by rewrite cardsE (card_uniqP (take_uniq k uniq_s)) size_take size_sort -cardE.
move=> c c'; rewrite !inE -/s -(mem_s c') => ck /andP[nck].
have : pairwise larger s.
  rewrite -sorted_pairwise; first by apply: sort_sorted => a b; apply: le_total.
  by move=> b a d ab bd; apply: le_trans bd ab.
rewrite -{1 2}(cat_take_drop k s) pairwise_cat mem_cat (negbTE nck) => /and3P[/allrelP rel _ _] c'd.
exact: rel.
Qed.
End TopK.

Section Select.
Variables (R : realFieldType) (m n : nat) (V : 'I_m * 'I_n -> R -> Prop) (Q : 'I_m * 'I_n -> R -> R).
Hypotheses (zero_allowed : forall p, V p 0) (Q_allowed : forall p z, V p (Q p z)).
Hypothesis Q_nearest : forall p z v, V p v -> (z - Q p z) ^+ 2 <= (z - v) ^+ 2.
Variables (cand group : finType) (of_pos : 'I_m * 'I_n -> cand) (of_cand : cand -> group) (k : group -> nat).

Definition k_masks M := exists2 A, keeps_k of_cand k A & M = mask_of of_pos A.
Definition select (Z : 'M[R]_(m, n)) : {set cand} :=
  [set c | c \in topk (cand_gain Q Z of_pos) (k (of_cand c)) (in_group of_cand (of_cand c))].

Lemma select_group Z g : select Z :&: in_group of_cand g = topk (cand_gain Q Z of_pos) (k g) (in_group of_cand g).
Proof.
apply/setP => c; rewrite [LHS]inE [c \in in_group _ _]inE [c \in select Z]inE.
case: eqP => [-> | neq]; rewrite ?andbT ?andbF //; apply/esym/negbTE; apply/negP.
by have [/subsetP sub _ _] := topkP (cand_gain Q Z of_pos) (k g) (in_group of_cand g) => /sub; rewrite inE => /eqP.
Qed.

Lemma select_largest Z : keeps_largest Q Z of_pos of_cand k (select Z).
Proof.
move=> g; have [_ card top] := topkP (cand_gain Q Z of_pos) (k g) (in_group of_cand g).
rewrite select_group; split=> // c c' ck; rewrite inE => /andP[nc' c'g]; apply: top => //.
by rewrite inE c'g andbT -select_group inE (negbTE nc').
Qed.

(* (b), (c) together: the projection of the code *)
Theorem projection_exact (Z : 'M[R]_(m, n)) :
  nearest (feasible V k_masks) Z (rounded_on Q Z (mask_of of_pos (select Z))).
Proof.
apply: (best_mask_nearest zero_allowed Q_allowed Q_nearest).
  exists (select Z) => // g; have [card _] := select_largest Z g; rewrite card; exact: geq_minl.
by move=> _ [A keeps ->]; apply: (keeping_largest zero_allowed Q_nearest (select_largest Z) keeps).
Qed.
End Select.
