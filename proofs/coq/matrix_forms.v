(* The layer objective over real matrices: trace inner product, quadratic forms, f and its gradient, nearest points.
   R is any ordered field, so everything here holds of the reals; nothing is assumed beyond the field's own laws. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Forms.
Variable R : realFieldType.

(* <A, B> = tr(A B^T) *)
Definition dot m n (A B : 'M[R]_(m, n)) : R := \tr (A *m B^T).
(* ||A||_F^2 *)
Definition sqnorm m n (A : 'M[R]_(m, n)) : R := dot A A.
(* tr(D C D^T); for a row vector the quadratic form itself *)
Definition form m n (C : 'M[R]_n) (D : 'M[R]_(m, n)) : R := \tr (D *m C *m D^T).

Definition symmetric n (C : 'M[R]_n) := C^T = C.
(* C is symmetric positive semidefinite; it may be singular. *)
Definition psd n (C : 'M[R]_n) := symmetric C /\ forall d : 'rV[R]_n, 0 <= form C d.
(* d C d^T <= L ||d||^2 for every row d: L is at least the largest eigenvalue of C. *)
Definition eig_le n (C : 'M[R]_n) (L : R) := forall d : 'rV[R]_n, form C d <= L * sqnorm d.

(* f(T) = 1/2 tr((W - T) C (W - T)^T) and its gradient (T - W) C *)
Definition objective m n (W : 'M[R]_(m, n)) (C : 'M[R]_n) (T : 'M[R]_(m, n)) : R := form C (W - T) / 2%:R.
Definition gradient m n (W : 'M[R]_(m, n)) (C : 'M[R]_n) (T : 'M[R]_(m, n)) := (T - W) *m C.

(* T is a nearest point of the set S to Z. *)
Definition nearest m n (S : 'M[R]_(m, n) -> Prop) Z T := S T /\ forall U, S U -> sqnorm (Z - T) <= sqnorm (Z - U).

Lemma dotE m n (A B : 'M[R]_(m, n)) : dot A B = \sum_i \sum_j A i j * B i j.
Proof. by apply: eq_bigr => i _; rewrite mxE; apply: eq_bigr => j _; rewrite mxE. Qed.

Lemma dotC m n (A B : 'M[R]_(m, n)) : dot A B = dot B A.
Proof. by rewrite !dotE; apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite mulrC. Qed.

Lemma dotDl m n (A B D : 'M[R]_(m, n)) : dot (A + B) D = dot A D + dot B D.
Proof. by rewrite /dot mulmxDl linearD. Qed.

Lemma dotDr m n (A B D : 'M[R]_(m, n)) : dot D (A + B) = dot D A + dot D B.
Proof. by rewrite dotC dotDl !(dotC D). Qed.

Lemma dotZl m n a (A B : 'M[R]_(m, n)) : dot (a *: A) B = a * dot A B.
Proof. by rewrite /dot -scalemxAl linearZ. Qed.

Lemma dotZr m n a (A B : 'M[R]_(m, n)) : dot A (a *: B) = a * dot A B.
Proof. by rewrite dotC dotZl dotC. Qed.

Lemma dotNl m n (A B : 'M[R]_(m, n)) : dot (- A) B = - dot A B.
Proof. by rewrite -scaleN1r dotZl mulN1r. Qed.

Lemma dotNr m n (A B : 'M[R]_(m, n)) : dot A (- B) = - dot A B.
Proof. by rewrite dotC dotNl dotC. Qed.

Lemma sqnormE m n (A : 'M[R]_(m, n)) : sqnorm A = \sum_i \sum_j A i j ^+ 2.
Proof. by rewrite /sqnorm dotE. Qed.

Lemma sqnorm_pair m n (A : 'M[R]_(m, n)) : sqnorm A = \sum_p A p.1 p.2 ^+ 2.
Proof. by rewrite sqnormE pair_bigA. Qed.

Lemma sqnorm_ge0 m n (A : 'M[R]_(m, n)) : 0 <= sqnorm A.
Proof. by rewrite sqnorm_pair; apply: sumr_ge0 => p _; apply: sqr_ge0. Qed.

Lemma sqnorm_entry m n (A : 'M[R]_(m, n)) i j : A i j ^+ 2 <= sqnorm A.
Proof.
rewrite sqnorm_pair (bigD1 (i, j)) //= ler_addl.
by apply: sumr_ge0 => p _; apply: sqr_ge0.
Qed.

Lemma sqnorm_eq0 m n (A : 'M[R]_(m, n)) : (sqnorm A == 0) = (A == 0).
Proof.
apply/eqP/eqP => [A0 | ->]; last by rewrite /sqnorm /dot mul0mx mxtrace0.
apply/matrixP => i j; rewrite mxE; apply/eqP.
by rewrite -sqrf_eq0 eq_le sqr_ge0 -A0 sqnorm_entry.
Qed.

Lemma sqnorm0 m n : sqnorm (0 : 'M[R]_(m, n)) = 0.
Proof. by apply/eqP; rewrite sqnorm_eq0. Qed.

Lemma sqnormZ m n a (A : 'M[R]_(m, n)) : sqnorm (a *: A) = a ^+ 2 * sqnorm A.
Proof. by rewrite /sqnorm dotZl dotZr mulrA. Qed.

Lemma sqnormN m n (A : 'M[R]_(m, n)) : sqnorm (- A) = sqnorm A.
Proof. by rewrite /sqnorm dotNl dotNr opprK. Qed.

Lemma sqnormD m n (A B : 'M[R]_(m, n)) : sqnorm (A + B) = sqnorm A + 2%:R * dot A B + sqnorm B.
Proof. by rewrite /sqnorm dotDl !dotDr (dotC B A); ring. Qed.

Lemma sqnorm_tr m n (A : 'M[R]_(m, n)) : sqnorm A^T = sqnorm A.
Proof. by rewrite /sqnorm /dot trmxK mxtrace_mulC. Qed.

Lemma sqnorm_rows m n (A : 'M[R]_(m, n)) : sqnorm A = \sum_i sqnorm (row i A).
Proof.
rewrite sqnormE; apply: eq_bigr => i _.
by rewrite sqnormE big_ord1; apply: eq_bigr => j _; rewrite mxE.
Qed.

Lemma form_dot m n (C : 'M[R]_n) (D : 'M[R]_(m, n)) : form C D = dot (D *m C) D.
Proof. by []. Qed.

Lemma form_rows m n (C : 'M[R]_n) (D : 'M[R]_(m, n)) : form C D = \sum_i form C (row i D).
Proof.
rewrite form_dot dotE; apply: eq_bigr => i _.
by rewrite form_dot dotE big_ord1 -row_mul; apply: eq_bigr => j _; rewrite !mxE.
Qed.

Lemma formN m n (C : 'M[R]_n) (D : 'M[R]_(m, n)) : form C (- D) = form C D.
Proof. by rewrite !form_dot mulNmx dotNl dotNr opprK. Qed.

Lemma formZ m n (C : 'M[R]_n) a (D : 'M[R]_(m, n)) : form C (a *: D) = a ^+ 2 * form C D.
Proof. by rewrite !form_dot -scalemxAl dotZl dotZr mulrA. Qed.

Lemma form_ge0 m n (C : 'M[R]_n) (D : 'M[R]_(m, n)) : psd C -> 0 <= form C D.
Proof. by case=> _ C0; rewrite form_rows; apply: sumr_ge0. Qed.

(* A bound on the rows that occur bounds the whole form. *)
Lemma form_le m n (C : 'M[R]_n) L (D : 'M[R]_(m, n)) :
  (forall i, form C (row i D) <= L * sqnorm (row i D)) -> form C D <= L * sqnorm D.
Proof. by move=> le; rewrite form_rows sqnorm_rows mulr_sumr; apply: ler_sum => i _. Qed.

Lemma dot_mulmxC m n (C : 'M[R]_n) (A B : 'M[R]_(m, n)) : symmetric C -> dot (A *m C) B = dot (B *m C) A.
Proof. by move=> sC; rewrite [RHS]dotC /dot [(B *m C)^T]trmx_mul sC mulmxA. Qed.

Lemma formD m n (C : 'M[R]_n) (A B : 'M[R]_(m, n)) :
  symmetric C -> form C (A + B) = form C A + 2%:R * dot (A *m C) B + form C B.
Proof.
move=> sC; rewrite !form_dot mulmxDl dotDl !dotDr (dot_mulmxC B A sC); ring.
Qed.

(* f is quadratic, so its expansion is exact. *)
Lemma objectiveD m n (W : 'M[R]_(m, n)) C (T D : 'M[R]_(m, n)) : symmetric C ->
  objective W C (T + D) = objective W C T + dot (gradient W C T) D + form C D / 2%:R.
Proof.
move=> sC; rewrite /objective /gradient -(formN C (W - (T + D))) -(formN C (W - T)).
have -> : - (W - (T + D)) = T - W + D by rewrite opprB addrAC.
by rewrite opprB formD //; field.
Qed.

Lemma objective_ge0 m n (W : 'M[R]_(m, n)) (C : 'M[R]_n) T : psd C -> 0 <= objective W C T.
Proof. by move=> pC; rewrite divr_ge0 ?ler0n ?form_ge0. Qed.

(* Cauchy-Schwarz in the semi-inner product of C *)
Lemma form_cauchy n (C : 'M[R]_n) (x y : 'rV[R]_n) : psd C -> dot (x *m C) y ^+ 2 <= form C x * form C y.
Proof.
move=> [symC C0]; have := C0 y; rewrite le_eqVlt => /orP[/eqP y0 | y_gt0].
  rewrite -y0 mulr0; have [-> | neq] := eqVneq (dot (x *m C) y) 0; first by rewrite expr0n.
  have := C0 (x + (- (form C x + 1) / (2%:R * dot (x *m C) y)) *: y).
  rewrite formD // dotZr formZ -y0 mulr0 addr0.
  have -> : form C x + 2%:R * (- (form C x + 1) / (2%:R * dot (x *m C) y) * dot (x *m C) y) = - 1.
    by field.
  by rewrite oppr_ge0 ler10.
rewrite -subr_ge0 -(pmulr_rge0 _ y_gt0); have := C0 (form C y *: x - dot (x *m C) y *: y).
rewrite -scaleNr formD // -scalemxAl dotZl dotZr !formZ; congr (0 <= _); ring.
Qed.

Lemma psd1 n : psd (1%:M : 'M[R]_n).
Proof. by split=> [|d]; [exact: trmx1 | rewrite form_dot mulmx1 sqnorm_ge0]. Qed.

Lemma cauchy_schwarz n (x y : 'rV[R]_n) : dot x y ^+ 2 <= sqnorm x * sqnorm y.
Proof. by have := form_cauchy x y (psd1 n); rewrite !form_dot !mulmx1. Qed.

Lemma sqnorm_mulmx n p (x : 'rV[R]_n) (A : 'M[R]_(n, p)) : sqnorm (x *m A) <= sqnorm x * sqnorm A.
Proof.
rewrite -[X in _ * X]sqnorm_tr [X in _ * X]sqnorm_rows mulr_sumr sqnormE big_ord1; apply: ler_sum => j _.
apply: le_trans (cauchy_schwarz _ _); rewrite le_eqVlt; apply/orP; left; apply/eqP; congr (_ ^+ 2).
by rewrite dotE big_ord1 mxE; apply: eq_bigr => k _; rewrite !mxE.
Qed.

(* C^2 <= L C *)
Lemma sqnorm_gram n (C : 'M[R]_n) L (x : 'rV[R]_n) : psd C -> eig_le C L -> 0 <= L -> sqnorm (x *m C) <= L * form C x.
Proof.
move=> psdC L_bound L_ge0; set y := x *m C.
have [-> | y_neq0] := eqVneq (sqnorm y) 0; first by rewrite mulr_ge0 ?form_ge0.
have y_gt0 : 0 < sqnorm y by rewrite lt_neqAle eq_sym y_neq0 sqnorm_ge0.
rewrite -(ler_pmul2r y_gt0) -mulrA mulrCA -/(dot y y) -expr2.
by apply: le_trans (form_cauchy x y psdC) _; rewrite ler_wpmul2l ?form_ge0.
Qed.

End Forms.
