(* T06 (a), the distance: once the support is fixed, a step contracts the distance to the refitted row. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02 T10.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Contraction.
Variables (R : realFieldType) (k : nat) (A : 'M[R]_k) (mu L eta q : R).
Hypotheses (symA : symmetric A) (mu_ge0 : 0 <= mu) (mu_le : mu <= L).

(* The eigenvalues of A = C_SS lie in [mu, L]. *)
Hypotheses (lower : forall d : 'rV[R]_k, mu * sqnorm d <= form A d) (upper : eig_le A L).
Hypotheses (q_mu : (1 - eta * mu) ^+ 2 <= q ^+ 2) (q_L : (1 - eta * L) ^+ 2 <= q ^+ 2).

Let B := A - mu%:M.

Lemma formB (d : 'rV[R]_k) : form B d = form A d - mu * sqnorm d.
Proof. by rewrite !form_dot /B mulmxBr mul_mx_scalar dotDl dotNl dotZl. Qed.

Lemma psdB : psd B.
Proof.
split=> [|d]; last by rewrite formB subr_ge0.
by rewrite /symmetric /B linearB /= tr_scalar_mx symA.
Qed.

(* ||e (I - eta A)||^2 is at most a point of the segment between (1 - eta mu)^2 ||e||^2 and (1 - eta L)^2 ||e||^2. *)
Theorem contraction (e : 'rV[R]_k) : sqnorm (e - eta *: (e *m A)) <= q ^+ 2 * sqnorm e.
Proof.
have upB : eig_le B (L - mu) by move=> d; rewrite formB mulrBl ler_add2r upper.
have gram : sqnorm (e *m B) <= (L - mu) * form B e by apply: sqnorm_gram psdB upB _; rewrite subr_ge0.
have -> : e - eta *: (e *m A) = (1 - eta * mu) *: e - eta *: (e *m B).
  rewrite /B mulmxBr mul_mx_scalar; move: (e *m A) => v; apply/rowP => j; rewrite !mxE.
  by move: (e 0 j) (v 0 j) => a b; ring.
rewrite -scaleNr sqnormD !sqnormZ dotZl dotZr (dotC e) -form_dot.
have b_ge0 : 0 <= form B e := (psdB).2 e.
have b_le : form B e <= (L - mu) * sqnorm e := upB e.
have [eq | neq] := eqVneq L mu.
  have b0 : form B e = 0 by apply/eqP; rewrite eq_le b_ge0 andbT; move: b_le; rewrite eq subrr mul0r.
  have g0 : sqnorm (e *m B) = 0.
    by apply/eqP; rewrite eq_le sqnorm_ge0 andbT; move: gram; rewrite b0 mulr0.
  by rewrite b0 g0 !mulr0 !addr0 ler_wpmul2r ?sqnorm_ge0.
have gap_gt0 : 0 < L - mu by rewrite subr_gt0 lt_neqAle eq_sym neq.
move: (sqnorm (e *m B)) (form B e) (sqnorm e) gram b_ge0 b_le => g b s gram b_ge0 b_le.
rewrite -subr_ge0.
have -> : q ^+ 2 * s - ((1 - eta * mu) ^+ 2 * s + 2%:R * ((1 - eta * mu) * (- eta * b)) + (- eta) ^+ 2 * g)
  = eta ^+ 2 * ((L - mu) * b - g) + (q ^+ 2 - (1 - eta * mu) ^+ 2) * (((L - mu) * s - b) / (L - mu))
    + (q ^+ 2 - (1 - eta * L) ^+ 2) * (b / (L - mu)).
  by field; rewrite gt_eqF.
by rewrite !addr_ge0 // mulr_ge0 ?sqr_ge0 ?divr_ge0 ?subr_ge0.
Qed.

(* t steps *)
Theorem linear_rate (x : nat -> 'rV[R]_k) refit : (forall t, x t.+1 = x t - eta *: ((x t - refit) *m A)) ->
  forall t, sqnorm (x t - refit) <= q ^+ (2 * t) * sqnorm (x 0%N - refit).
Proof.
move=> run; elim=> [|t IH]; first by rewrite muln0 expr0 mul1r.
rewrite run addrAC mulnS exprD -mulrA; apply: le_trans (contraction _) _.
by rewrite ler_wpmul2l ?sqr_ge0.
Qed.
End Contraction.

(* A projected step that keeps the support S is such a step with A = C_SS. *)
Theorem step_on_support (R : realFieldType) n k (C : 'M[R]_n) (w : 'rV[R]_n) (p : 'I_k -> 'I_n)
  (refit x : 'rV[R]_k) eta :
  injective p -> (refit *m embed R p - w) *m C *m (embed R p)^T = 0 ->
  (x *m embed R p - eta *: gradient w C (x *m embed R p)) *m (embed R p)^T = x - eta *: ((x - refit) *m C_SS C p).
Proof.
move=> p_inj normal; rewrite mulmxBl -scalemxAl; congr (_ - _ *: _).
  by apply/rowP => i; rewrite -[RHS](embedE p_inj) mxE (bigD1 (p i)) //= big1 => [|l /negbTE neq];
    rewrite !mxE ?eqxx ?mulr1 ?addr0 // eq_sym neq mulr0.
rewrite /gradient; have -> : x *m embed R p - w = (x - refit) *m embed R p + (refit *m embed R p - w).
  by rewrite mulmxBl addrA subrK.
by rewrite mulmxDl mulmxDl normal addr0 /C_SS !mulmxA.
Qed.
